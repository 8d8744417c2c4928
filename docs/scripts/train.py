"""Train with several processes, one per GPU if available: ``torchrun --nproc-per-node 2 train.py [ddp|fsdp2]``."""

import sys

import timm
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sia_layers import inject_sia, sia_modules, sia_parameters

gpu = torch.cuda.is_available()
dist.init_process_group("nccl" if gpu else "gloo")
rank = dist.get_rank()
device = torch.device("cuda", rank % torch.cuda.device_count()) if gpu else torch.device("cpu")
if gpu:
    torch.cuda.set_device(device)

torch.manual_seed(0)  # the same initial weights in every process
model = timm.create_model("resnet10t", num_classes=2).to(device)
inject_sia(model)  # before the model is wrapped

if sys.argv[1:] == ["fsdp2"]:
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        fully_shard(stage, mesh=mesh)
    trained = fully_shard(model, mesh=mesh)
else:
    trained = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(sia_parameters(model), lr=1e-2)  # after wrapping, which replaces parameters

torch.manual_seed(rank)  # different pictures in every process
for _ in range(3):
    images = torch.rand(4, 3, 64, 64, device=device)
    labels = torch.randint(2, (4,), device=device)
    loss = torch.nn.functional.cross_entropy(trained(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

for name, module in sia_modules(model).items():
    gain = module.gain.full_tensor() if hasattr(module.gain, "full_tensor") else module.gain
    if rank == 0:
        print(f"{name}: gain {gain.item():+.4f}")
dist.destroy_process_group()
