"""The faces of Glassbox, without logic: the `glassbox` command, the browser, and `ui.render`, which draws results."""
