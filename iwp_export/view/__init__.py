"""Reports: HTML pages that need nothing but the file itself, and the charts in them."""
