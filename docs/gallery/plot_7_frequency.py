"""
The frequency domain
====================

A splice that only its compression betrays: a rectangle of a photograph that was never compressed, put back into the
JPEG of the same photograph. Pixel by pixel there is nothing to see. In the coefficients of 8 × 8 blocks, JPEG's own
transform, quantised and unquantised blocks differ.
"""

import io

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from skimage import data

from sia_layers import frequency_self_information, self_information

photo = np.asarray(Image.fromarray(data.coffee()).convert("L"))[:384, :384]
file = io.BytesIO()
Image.fromarray(photo).save(file, "jpeg", quality=75)
spliced = np.array(Image.open(file))
spliced[128:256, 160:288] = photo[128:256, 160:288]
x = torch.from_numpy(spliced)[None, None].float() / 255

pixels = self_information(x, kernel_size=3)
coefficients = frequency_self_information(x, kernel_size=3, bandwidth=0.1)
print(f"{tuple(coefficients.shape)}: 64 sub-bands, one pixel for each block")

# %%
# The mean over the higher half of the sub-bands, where quantisation leaves zeros, shows the rectangle.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
axes[0].imshow(spliced, cmap="gray")
axes[0].set_title("spliced photograph")
axes[1].imshow(pixels[0, 0], cmap="inferno")
axes[1].set_title("of pixels")
axes[2].imshow(coefficients[0, 32:].mean(0), cmap="inferno")
axes[2].set_title("of DCT coefficients")
for place in axes:
    place.set_axis_off()

# %%
# ``inject_sia(model, domain="frequency")`` gates feature maps this way, and ``domain="both"`` pixels and then
# coefficients.
