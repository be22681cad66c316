"""Words that name what photos show: the texts of ImageNet's classes, and an everyday vocabulary."""
