"""A type that several tables use."""

from typing import Annotated

from pydantic import Field

Share = Annotated[float, Field(ge=0, lt=1)]
"""A share of a whole, less than all of it."""
