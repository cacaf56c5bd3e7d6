# Workers come and go; aggregatord notices that by itself, so there is no child_exit hook.
bind = "127.0.0.1:8000"
workers = 4
max_requests = 1000
max_requests_jitter = 100
