"""Imports label lists of users: tables, COCO's JSON, or one folder per label."""
