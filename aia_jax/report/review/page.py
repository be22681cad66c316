"""Builds the page of `aia review` from its parts, and from the parts that it shares with the gallery."""

from string import Template

from aia_jax.report.page_parts import base_style, content_hash, read_part

_GALLERY = "aia_jax.report.gallery"
_SHARED_SCRIPTS = ("text", "grid")
_SCRIPTS = ("requests", "photos", "rows", "cards", "chooser", "detail", "selection", "training", "main")


def review_page() -> tuple[str, str]:
    """Returns the HTML page and its content security policy. The page holds no photos and no text of users."""
    style = base_style() + read_part("gallery.css", _GALLERY) + read_part("review.css", __package__)
    parts = [read_part(f"{name}.js", _GALLERY) for name in _SHARED_SCRIPTS]
    parts += [read_part(f"{name}.js", __package__) for name in _SCRIPTS]
    script = '"use strict";\n(() => {{\n{}\n}})();\n'.format("\n".join(parts))
    policy = (
        f"default-src 'none'; img-src blob: data:; connect-src 'self'; style-src {content_hash(style)}; "
        f"script-src {content_hash(script)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = Template(read_part("page.html", __package__)).substitute(style=style, script=script)
    return page, policy
