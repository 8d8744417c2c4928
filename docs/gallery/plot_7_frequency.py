"""
The frequency domain
====================

This example finds a splice that only its compression reveals: a rectangle of an uncompressed photograph, pasted into
the JPEG of the same photograph. The pixels show nothing. JPEG transforms and quantises blocks of 8 × 8 pixels, and in
the coefficients of these blocks the quantised and the unquantised ones differ.
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
print(f"{tuple(coefficients.shape)}: 64 sub-bands, one pixel per block")

# %%
# The mean over the upper half of the sub-bands, where quantisation leaves zeros, shows the rectangle.

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
# ``inject_sia(model, domain="frequency")`` gates feature maps this way; ``domain="both"`` gates first the pixels and
# then the coefficients.
