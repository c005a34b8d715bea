"""The state directory: records, the last observation of EC2, clocks."""
