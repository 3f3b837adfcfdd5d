"""``r2m data``: make, audit and synthesise data."""
