package injector

import (
	"strings"
	"testing"
)

func TestParseConfig(t *testing.T) {
	service := map[string]string{"HAUBERK_CONTROL_SERVICE_HOST": "10.96.0.12", "HAUBERK_CONTROL_SERVICE_PORT_GRPC": "15012", "HAUBERK_PROXY_IMAGE": "example.org/proxy:1"}
	six := map[string]string{"HAUBERK_CONTROL_SERVICE_HOST": "fd00::12", "HAUBERK_CONTROL_SERVICE_PORT": "1", "HAUBERK_PROXY_IMAGE": "example.org/proxy:1"}
	for _, tc := range []struct {
		name    string
		args    []string
		env     map[string]string
		control string // the address that results, empty for an error
		message string
	}{
		{"from the Service", nil, service, "10.96.0.12:15012", ""},
		{"IPv6, first port", nil, six, "[fd00::12]:1", ""},
		{"flag wins", []string{"--control-address=10.0.0.1:2"}, service, "10.0.0.1:2", ""},
		{"no Service", []string{"--proxy-image=a:1"}, nil, "", "control address"},
		{"name", []string{"--control-address=hauberk-control:15012"}, service, "", "control address"},
		{"no image", []string{"--control-address=10.0.0.1:2"}, nil, "", "proxy image"},
		{"argument", []string{"x"}, service, "", "unexpected argument"},
		{"admin for all", []string{"--admin-address=:15000"}, service, "", "not on loopback"},
		{"no port", []string{"--health-address=here"}, service, "", "health-address"},
		{"no namespace", []string{"--namespace="}, service, "", "namespace is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, err := ParseConfig(tc.args, func(k string) string { return tc.env[k] })
			if tc.control == "" {
				if err == nil || !strings.Contains(err.Error(), tc.message) {
					t.Errorf("got %v, want an error that says %q", err, tc.message)
				}
				return
			}
			if err != nil || cfg.Sidecar.ControlAddress != tc.control {
				t.Errorf("control address %q, %v; want %q", cfg.Sidecar.ControlAddress, err, tc.control)
			}
		})
	}
}
