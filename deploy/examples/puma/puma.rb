# Workers come and go; aggregatord notices that by itself, so nothing is cleaned up here.
bind 'tcp://127.0.0.1:8000'
workers 3
preload_app!
# Each worker has files of its own from its start on, not from its first request.
on_worker_boot { Prometheus::Client.reinitialize_on_pid_change }
