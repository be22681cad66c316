"""Labels from tables, COCO files and folders of the user."""
