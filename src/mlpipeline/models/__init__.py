"""Config-driven components, and the specification's face of the package."""
