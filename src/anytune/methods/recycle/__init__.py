"""Methods for carrying tuned weights over to an upgraded base: one file each."""
