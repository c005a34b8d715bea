"""Instance metadata, version 2: asked within bounds, read with distrust."""
