#!/bin/bash
# nginx, the ceiling (no policy at all): one worker, kept connections both ways, answers not buffered:
# nginx.sh PORT ENGINE1 ENGINE2
set -euo pipefail
work=$(mktemp -d)
cat > "$work/nginx.conf" <<CONF
daemon off; master_process off; worker_processes 1; pid $work/pid; error_log $work/errors warn;
events { worker_connections 4096; }
http {
  access_log off; keepalive_timeout 300; keepalive_requests 1000000000; client_max_body_size 64m;
  client_body_buffer_size 1m; tcp_nodelay on;
  client_body_temp_path $work/body; proxy_temp_path $work/proxy; fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi; scgi_temp_path $work/scgi;
  upstream engines { server ${2#http://}; server ${3#http://}; keepalive 512; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:$1 backlog=4096;
    location / {
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }
  }
}
CONF
PATH=$PATH:/usr/sbin exec nginx -c "$work/nginx.conf" -p "$work/"
