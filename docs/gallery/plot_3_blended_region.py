"""
Forged and real: a blended region
=================================

Face swaps blend a foreign region into a picture. Resampling and smoothing leave that region with less fine detail than
its surroundings. Here a region of a photograph is scaled down, scaled up and blended back in: the content stays the
same, but the traces are those of a forgery.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from skimage import data

from sia_layers import self_information

photo = data.chelsea()[20:276, 90:346]
real = torch.from_numpy(photo).permute(2, 0, 1).unsqueeze(0).float() / 255
height, width = real.shape[2:]

rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
distance = ((rows - 128) / 60).square() + ((columns - 128) / 75).square()
mask = torch.sigmoid(12 * (1 - distance))  # a soft ellipse
smaller = F.interpolate(real, scale_factor=0.6, mode="bicubic", antialias=True)
donor = F.interpolate(smaller, size=(height, width), mode="bicubic").clamp(0, 1)
fake = real + mask * (donor - real)

# %%
# The two photographs look almost the same, but their self-information does not: the map is darker in the blended
# region, and the difference shows the outline of the ellipse.

infos = {name: self_information(x, kernel_size=3)[0].mean(0) for name, x in (("real", real), ("forged", fake))}
difference = F.avg_pool2d((infos["forged"] - infos["real"])[None, None], 9, stride=1, padding=4)[0, 0]

figure, grid = plt.subplots(2, 3, figsize=(9, 6), layout="constrained")
for axes in grid.flat:
    axes.set_axis_off()
for row, x, name in ((grid[0], real, "real"), (grid[1], fake, "forged")):
    row[0].imshow(x[0].permute(1, 2, 0))
    row[0].set_title(name)
    row[1].imshow(infos[name], cmap="inferno", vmin=0)
    row[1].set_title("self-information, K = 3")
grid[0, 2].imshow(mask, cmap="gray")
grid[0, 2].set_title("blended region")
limit = difference.abs().max()
grid[1, 2].imshow(difference, cmap="coolwarm", vmin=-limit, vmax=limit)
grid[1, 2].set_title("forged − real, smoothed")

inside, outside = mask > 0.9, mask < 0.1
for name, info in infos.items():
    print(f"{name}: {info[inside].mean():.3f} nats inside the ellipse, {info[outside].mean():.3f} outside")

# %%
# A detector sees only the forged picture, not the original, and a face has more detail in its eyes than on its cheeks
# whether it was manipulated or not. :doc:`/reproduction` measures how well the map alone detects forgeries: hardly at
# all. SIA passes the map to a network, which learns how to use it.
