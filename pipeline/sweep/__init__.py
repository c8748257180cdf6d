"""The paper's table: all variants and seeds trained and evaluated, as many at once as there are devices."""
