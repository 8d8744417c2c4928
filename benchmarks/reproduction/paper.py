"""Figures printed in the supplement of Sun et al. (ECCV 2022), in percent where the supplement uses percent."""

from __future__ import annotations

from typing import Final

TABLE1: Final = {  # ACC, AUC on DFDC
    "Xception": (80.23, 89.50),
    "EfficientNet-b4": (80.91, 89.91),
    "Add-Net": (79.90, 89.85),
    "RFM": (80.83, 89.75),
    "F3-Net": (77.66, 88.39),
    "MAT": (78.43, 90.12),
    "Ours": (81.31, 90.96),
}

# ACC on FaceForensics++: DeepFakes, Face2Face, FaceSwap, NeuralTextures, each in high and low quality.
TABLE3: Final = {
    "Norm": {"DF": (84.16, 74.89), "F2F": (61.09, 57.14), "FS": (64.58, 61.45), "NT": (59.30, 53.20)},
    "CDC": {"DF": (90.05, 78.95), "F2F": (82.90, 64.69), "FS": (89.87, 67.74), "NT": (81.93, 62.14)},
    "Depthwise": {"DF": (91.38, 86.99), "F2F": (91.47, 77.11), "FS": (90.19, 79.83), "NT": (82.97, 66.59)},
}
# The manipulation of FaceForensics++ most similar to each of ours, and its own names; none is like self-blending.
NEAREST: Final = {
    "face swap": "FS", "reenactment": "F2F", "texture resynthesis": "NT",
    "Deepfakes": "DF", "Face2Face": "F2F", "FaceSwap": "FS", "NeuralTextures": "NT",
}  # fmt: skip
PARAMETERS: Final = {"Norm": "6.29M", "CDC": "6.29M", "Depthwise": "4.90M"}

TABLE4: Final = {  # Layer2 to Layer5 and AVG
    "Norm": (12.56, 12.39, 12.71, 12.17, 12.45),
    "CDC": (13.01, 13.31, 13.95, 13.21, 13.37),
    "Depthwise": (13.56, 13.97, 14.69, 13.88, 14.03),
}

TABLE5: Final = {  # ACC and AUC on DFDC, ACC and AUC on WildDeepfake
    "SPSL": (78.49, 89.52, 76.14, 84.40),
    "SPSL+SIA": (80.75, 90.69, 78.93, 88.35),
    "F3-Net": (77.66, 88.39, 80.66, 87.53),
    "F3-Net+SIA": (79.01, 89.11, 81.35, 89.29),
    "DCL": (79.27, 88.77, 79.19, 89.27),
    "DCL+SIA": (80.84, 90.00, 81.32, 90.33),
}
