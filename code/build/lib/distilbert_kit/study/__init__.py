"""The reproduction study: recipes, records, cells, statistics, what the report reads."""
