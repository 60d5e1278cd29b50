"""The number of the struct layouts that this package was built with; see layout.pxd."""

NUMBER = layout_number()
