"""Reads labels of a user's own photos: from a table, COCO's JSON, or one folder per label."""
