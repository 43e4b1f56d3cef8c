"""Small members of the true-size classes."""

from __future__ import annotations

from typing import Any

# Members of the same classes, small enough to run for PyTorch's counter.
SMALL: dict[str, dict[str, Any]] = {
    "sd3": {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128},
    "flux": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
    "pixart": {"num_layers": 2},
    "sdxl": {
        "block_out_channels": (160, 320, 640),
        "transformer_layers_per_block": (1, 1, 1),
        "layers_per_block": 1,
    },
}
