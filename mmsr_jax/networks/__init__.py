"""Networks: shapes in, shapes out, no losses."""
