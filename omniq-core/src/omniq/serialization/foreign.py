"""Classes of no kind that OmniQ knows, through the hooks that the application registered with cattrs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omniq.serialization.codec import Codec, unwrapping, wrapping
from omniq.serialization.errors import CodecError, describe, type_name
from omniq.serialization.verify import verified

if TYPE_CHECKING:
    import cattrs

__all__ = ["foreign_codec"]


def foreign_codec(
    name: str, full_name: str, cls: type, converter: Callable[[], cattrs.Converter], anything: Codec
) -> Codec:
    """Make the codec of a class that only hooks know: what the hook makes, tagged with its full name.

    :param converter: gives the cattrs converter that has the hooks, or has none and every value is refused.
    :param anything: the codec of what a hook makes.
    """

    def unstructure(value: Any) -> Any:
        try:
            made = converter().get_unstructure_hook(cls)(value)
        except Exception as error:
            raise CodecError(f"the cattrs hook for {name} failed: {describe(error)}") from error
        if made is value:
            raise CodecError(
                f"cannot hold an instance of {name}; convert the value, register cattrs hooks for {name} with the "
                "serializer's converter, or use another serializer"
            )
        return anything.encode(made)

    def structure(tree: Any) -> Any:
        made = anything.decode(tree)
        try:
            value = converter().get_structure_hook(cls)(made, cls)
        except Exception as error:
            raise CodecError(f"no {name} can be made with cattrs: {describe(error)}") from error
        if type(value) is not cls:
            raise CodecError(f"the cattrs hook for {name} made a {type_name(value)}")
        return value

    advice = f"correct the cattrs hooks for {name}"
    wrap, unwrap = wrapping(full_name, unstructure), unwrapping(full_name, structure)
    return Codec(
        name=name,
        encoders={cls: verified(name, wrap, unwrap, advice=advice)},
        tags={full_name: unwrap},
        label=name,
        full_label=full_name,
        self_describing=False,
    )
