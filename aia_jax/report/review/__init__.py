"""The page of `aia review`: HTML, style and scripts."""
