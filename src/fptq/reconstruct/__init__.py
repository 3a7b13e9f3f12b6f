"""Repairs what rounding to nearest breaks: learned rounding, and corrections in closed form."""
