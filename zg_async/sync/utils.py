"""The peers' module of this name."""

from zg_async.units import og_to_wei, wei_to_og

__all__ = ["og_to_wei", "wei_to_og"]
