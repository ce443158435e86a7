"""Where arrays lie: meshes of devices, how parameters are cut over them, several processes."""
