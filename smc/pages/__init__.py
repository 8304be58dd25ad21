"""Pages about models and sweeps: HTML files without links to other files."""

from smc.pages.model import artifact_page, module_page

__all__ = ["artifact_page", "module_page"]
