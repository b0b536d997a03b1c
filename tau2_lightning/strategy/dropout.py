"""Dropout is off in every pass: the engine samples without it, and training must describe the same distribution."""

from __future__ import annotations

from torch import nn

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of ``model`` to 0, in place; training mode then computes what evaluation computes.

    transformers keeps them in dropout modules, and in attributes such as ``attention_dropout`` of attention modules.
    The model's configuration is left as it is, because it is exported with the weights.
    """
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith(("dropout", "_pdrop", "dropout_prob")) and isinstance(value, float):
                setattr(module, name, 0.0)
