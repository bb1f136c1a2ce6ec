"""From records to an OTLP receiver: requests, the spool on disk, HTTP and gRPC, sync."""
