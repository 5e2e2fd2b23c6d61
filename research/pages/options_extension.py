"""An extension of griffe, for the pages of the API: methods with options show them as keyword arguments."""

from typing import Any

import griffe


class OptionsExtension(griffe.Extension):
    """Shows `**options: CallOptions` where `with_options(CallOptions)` makes keyword arguments of a class."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Change the parameters of a decorated method."""
        for decorator in func.decorators:
            name, _, rest = str(decorator.value).partition("(")
            if name.rpartition(".")[2] != "with_options":
                continue
            del func.parameters["options"]
            prompt = func.parameters["prompt"]
            prompt.default = "None"
            kind = griffe.ExprName(rest.rstrip(")"), parent=func.module)
            func.parameters.add(
                griffe.Parameter(
                    "options", annotation=kind, kind=griffe.ParameterKind.var_keyword, default="{}"
                )
            )
