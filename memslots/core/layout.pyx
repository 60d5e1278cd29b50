"""The layout number that this package was built with; see layout.pxd."""

NUMBER = layout_number()
