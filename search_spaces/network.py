"""Any network as a search space: what can be swapped in it is found by its structure.

In a config or on a command line it is named by the import path of a function that returns it:

    blockswap space search_spaces.network:NetworkSpace --space-arg model=torchvision.models:resnet50
    blockswap space --model torchvision.models:resnet50 --input-size 3,64,64 --model-arg num_classes=10

and in a program by the network itself: ``nni_blockswap.swap_blocks(model, example_input)``.
"""

from nni_blockswap.blocks.network import NetworkSpace

__all__ = ["NetworkSpace"]
