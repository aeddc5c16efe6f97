"""What every section of the settings is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, le=1)]
Natural = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


def listed(value: Any) -> Any:
    """``a,b`` as a list, as it is typed on a command line."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, docstrings under the fields are their help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)
