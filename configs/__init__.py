"""The configs of published runs and demos; `aia configs` lists them."""
