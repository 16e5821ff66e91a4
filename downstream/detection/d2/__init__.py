"""What needs Detectron2. Nothing outside imports it before Detectron2 is known to be there."""
