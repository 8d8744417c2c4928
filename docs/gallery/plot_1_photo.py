"""
The map of a photograph
=======================

A photograph is a feature map with three channels. Its self-information is high where a pixel differs from its
neighbours or from the other colours at its position: on edges and in texture. It is low in smooth regions, however
bright they are. The command ``python -m sia_layers map photo.jpg`` draws the same map.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data

from sia_layers import self_information

photo = data.chelsea()  # (300, 451, 3), uint8
x = torch.from_numpy(photo).permute(2, 0, 1).unsqueeze(0).float() / 255
info = self_information(x, kernel_size=7)
print(tuple(info.shape), f"{info.min():.3f} to {info.max():.3f} nats")

# %%
# The result has one map per channel. The figures on these pages show the mean over the channels.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.imshow(photo)
left.set_title("photograph")
drawn = right.imshow(info[0].mean(0), cmap="inferno", vmin=0, vmax=2)
right.set_title("self-information, K = 7")
figure.colorbar(drawn, ax=right, label="nats")
for axes in (left, right):
    axes.set_axis_off()

# %%
# With the adaptive bandwidth, contrast and brightness make no difference: I is the same for x and a · x + c.

darker = self_information(0.2 * x + 0.1, kernel_size=7)
print(f"largest difference: {(info - darker).abs().max():.1e} nats")
