package main

// The files of other proxies. All have two threads or workers, TLS 1.3 with
// AES-128-GCM, no access log, pools as large as ours, and the certificates of
// the same root.

const haproxyGlobal = `global
  nbthread 2
  maxconn {{.MaxConns}}
  ssl-default-bind-options ssl-min-ver TLSv1.3{{if .Full}} no-tls-tickets{{end}}
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
`

const haproxyClient = haproxyGlobal + `
  default-server ssl crt {{.Dir}}/client.pem ca-file {{.Dir}}/ca.pem verify required verifyhost {{.ServerName}} sni str({{.ServerName}}){{if .Full}} no-ssl-reuse{{end}}
listen http
  mode http
  bind {{index .Client 0}}
  server s {{index .Between 0}}
listen tcp
  mode tcp
  bind {{index .Client 1}}
  server s {{index .Between 1}}
listen grpc
  mode http
  bind {{index .Client 2}} proto h2
  server s {{index .Between 2}} alpn h2
`

const haproxyServer = haproxyGlobal + `
listen http
  mode http
  bind {{index .Between 0}} ssl crt {{.Dir}}/server.pem ca-file {{.Dir}}/ca.pem verify required
  http-request deny unless { ssl_c_used } { ssl_c_verify 0 }
  server s {{.Backend.HTTP}}
listen tcp
  mode tcp
  bind {{index .Between 1}} ssl crt {{.Dir}}/server.pem ca-file {{.Dir}}/ca.pem verify required
  server s {{.Backend.TCP}}
listen grpc
  mode http
  bind {{index .Between 2}} ssl crt {{.Dir}}/server.pem ca-file {{.Dir}}/ca.pem verify required alpn h2
  server s {{.Backend.GRPC}} proto h2
`

const nginxGlobal = `{{with .Stream}}load_module {{.}};
{{end}}worker_processes 2;
daemon off;
user root;
error_log stderr error;
pid {{.Pid}};
events { worker_connections {{.Descriptors}}; }
`

const nginxHTTP = `
  access_log off;
  client_body_temp_path {{.Dir}}/nginx-body; proxy_temp_path {{.Dir}}/nginx-proxy; fastcgi_temp_path {{.Dir}}/nginx-fastcgi;
  uwsgi_temp_path {{.Dir}}/nginx-uwsgi; scgi_temp_path {{.Dir}}/nginx-scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  ssl_protocols TLSv1.3;
  ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
`

const nginxClient = nginxGlobal + `
http {` + nginxHTTP + `
  upstream http { server {{index .Between 0}}; keepalive 256; keepalive_requests 1000000000; }
  upstream grpc { server {{index .Between 2}}; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen {{index .Client 0}};
    location / {
      proxy_pass https://http;
      proxy_ssl_certificate {{.Dir}}/client.crt; proxy_ssl_certificate_key {{.Dir}}/client.key; proxy_ssl_trusted_certificate {{.Dir}}/ca.pem;
      proxy_ssl_verify on; proxy_ssl_name {{.ServerName}}; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;
    }
  }
  server {
    listen {{index .Client 2}} http2;
    location / {
      grpc_pass grpcs://grpc;
      grpc_ssl_certificate {{.Dir}}/client.crt; grpc_ssl_certificate_key {{.Dir}}/client.key; grpc_ssl_trusted_certificate {{.Dir}}/ca.pem;
      grpc_ssl_verify on; grpc_ssl_name {{.ServerName}}; grpc_ssl_server_name on; grpc_ssl_protocols TLSv1.3;
    }
  }
}
{{if .Stream}}stream {
  server {
    listen {{index .Client 1}};
    proxy_half_close on;
    proxy_pass {{index .Between 1}};
    proxy_ssl on; proxy_ssl_session_reuse {{if .Full}}off{{else}}on{{end}};
    proxy_ssl_certificate {{.Dir}}/client.crt; proxy_ssl_certificate_key {{.Dir}}/client.key; proxy_ssl_trusted_certificate {{.Dir}}/ca.pem;
    proxy_ssl_verify on; proxy_ssl_name {{.ServerName}}; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;
  }
}
{{end}}`

const nginxServer = nginxGlobal + `
http {` + nginxHTTP + `
  ssl_certificate {{.Dir}}/server.crt; ssl_certificate_key {{.Dir}}/server.key;
  ssl_client_certificate {{.Dir}}/ca.pem; ssl_verify_client on;
  upstream http { server {{.Backend.HTTP}}; keepalive 256; keepalive_requests 1000000000; }
  upstream grpc { server {{.Backend.GRPC}}; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen {{index .Between 0}} ssl;
    location / { proxy_pass http://http; }
  }
  server {
    listen {{index .Between 2}} ssl http2;
    location / { grpc_pass grpc://grpc; }
  }
}
{{if .Stream}}stream {
  server {
    listen {{index .Between 1}} ssl;
    ssl_certificate {{.Dir}}/server.crt; ssl_certificate_key {{.Dir}}/server.key;
    ssl_client_certificate {{.Dir}}/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3;
    ssl_session_cache shared:s:10m;
    proxy_half_close on;
    proxy_pass {{.Backend.TCP}};
  }
}
{{end}}`

const envoyConfig = `
{{- define "address"}}{socket_address: {address: {{.Addr}}, port_value: {{.Port}}}}{{end}}
{{- define "tls"}}common_tls_context:
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {filename: {{.Dir}}/{{if .ClientSide}}client{{else}}server{{end}}-svid.crt}, private_key: {filename: {{.Dir}}/{{if .ClientSide}}client{{else}}server{{end}}-svid.key}}]
            validation_context:
              trusted_ca: {filename: {{.Dir}}/ca.pem}
              match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "{{if .ClientSide}}{{.ServerID}}{{else}}{{.ClientID}}{{end}}"}}]{{end}}
{{- define "filter-tls"}}{{if not .ClientSide}}
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          {{template "tls" .}}{{end}}{{end}}
{{- define "cluster-tls"}}{{if .ClientSide}}
    transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          max_session_keys: {{if .Full}}0{{else}}16{{end}}
          {{template "tls" .}}{{end}}{{end}}
{{- define "http"}}"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          generate_request_id: false
          tracing:
            random_sampling: {value: 1}
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                grpc_service: {envoy_grpc: {cluster_name: otlp}}
                service_name: bench
          http_filters:
{{- if and .Rules (not .ClientSide)}}
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  grpc: {permissions: [{header: {name: ":method", string_match: {exact: POST}}}], principals: [{authenticated: {principal_name: {exact: "{{.ClientID}}"}}}]}
                  items: {permissions: [{and_rules: {rules: [{header: {name: ":method", string_match: {exact: GET}}}, {url_path: {path: {prefix: /api/}}}]}}], principals: [{authenticated: {principal_name: {exact: "{{.ClientID}}"}}}]}
{{- $id := .ClientID}}{{range .Rules}}{{if gt . 1}}
                  a{{.}}: {permissions: [{and_rules: {rules: [{header: {name: ":method", string_match: {exact: GET}}}, {url_path: {path: {prefix: /service-{{.}}/}}}]}}], principals: [{authenticated: {principal_name: {exact: "{{$id}}"}}}]}
{{- end}}{{end}}
{{- end}}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}{{end}}
static_resources:
  listeners:
  - name: http
    address: {{template "address" (index (or (and .ClientSide .Client) .Between) 0)}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          {{template "http" .}}
          stat_prefix: http
          codec_type: HTTP1
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: http, timeout: 0s}}]}]}{{template "filter-tls" .}}
  - name: tcp
    address: {{template "address" (index (or (and .ClientSide .Client) .Between) 1)}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: tcp}{{template "filter-tls" .}}
  - name: grpc
    address: {{template "address" (index (or (and .ClientSide .Client) .Between) 2)}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          {{template "http" .}}
          stat_prefix: grpc
          codec_type: HTTP2
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: grpc, timeout: 0s}}]}]}{{template "filter-tls" .}}
  clusters:
  - name: http
    connect_timeout: 5s
    load_assignment: {cluster_name: http, endpoints: [{lb_endpoints: [{endpoint: {address: {{if .ClientSide}}{{template "address" (index .Between 0)}}{{else}}{{template "address" .Backend.HTTP}}{{end}}}}]}]}
    circuit_breakers: {thresholds: [{max_connections: 50000, max_requests: 50000, max_pending_requests: 50000}]}{{template "cluster-tls" .}}
  - name: tcp
    connect_timeout: 5s
    load_assignment: {cluster_name: tcp, endpoints: [{lb_endpoints: [{endpoint: {address: {{if .ClientSide}}{{template "address" (index .Between 1)}}{{else}}{{template "address" .Backend.TCP}}{{end}}}}]}]}
    circuit_breakers: {thresholds: [{max_connections: 50000}]}{{template "cluster-tls" .}}
  - name: grpc
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: grpc, endpoints: [{lb_endpoints: [{endpoint: {address: {{if .ClientSide}}{{template "address" (index .Between 2)}}{{else}}{{template "address" .Backend.GRPC}}{{end}}}}]}]}{{template "cluster-tls" .}}
  - name: otlp
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: otlp, endpoints: [{lb_endpoints: [{endpoint: {address: {{template "address" .OTLP}}}}]}]}
`
