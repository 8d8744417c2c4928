"""
Kernel size and bandwidth
=========================

``kernel_size`` is the side K of the window that a pixel is compared with. ``bandwidth`` is the factor b on the measured
bandwidth h, which sets how much two values may differ and still count as similar.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data

from sia_layers import self_information

photo = data.coffee()[100:356, 150:406]
x = torch.from_numpy(photo).permute(2, 0, 1).unsqueeze(0).float() / 255

sizes, bandwidths = (3, 7, 15), (0.25, 1.0, 4.0)
figure, grid = plt.subplots(len(bandwidths), len(sizes) + 1, figsize=(9, 7), layout="constrained")
for axes in grid.flat:
    axes.set_axis_off()
grid[0, 0].imshow(photo)
grid[0, 0].set_title("photograph")
for row, bandwidth in zip(grid[:, 1:], bandwidths, strict=True):
    for axes, size in zip(row, sizes, strict=True):
        info = self_information(x, size, bandwidth=bandwidth)[0].mean(0)
        axes.imshow(info, cmap="inferno", vmin=0)
        axes.set_title(f"K = {size}, b = {bandwidth:g}\nmean {info.mean():.2f} nats", fontsize=9)

# %%
# - A wide window marks whole structures; a narrow one marks their outlines.
# - A small bandwidth resolves the finest differences, so that grain and JPEG artefacts become visible. A large one
#   leaves only the strongest edges; since everything becomes probable, most values are near 0.
# - The upper bound, :math:`\log K^2` plus ``inter_weight`` times :math:`\log(S + 1)`, grows with the window.
