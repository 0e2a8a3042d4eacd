package server

import (
	"strings"
	"testing"
	"time"
)

func TestParseConfig(t *testing.T) {
	env := map[string]string{"HAUBERK_TRUST_DOMAIN": "example.org", "POD_NAME": "hauberk-control-1", "POD_UID": "u"}
	c, err := ParseConfig([]string{"-certificate-ttl", "2h", "--log-level=debug"}, func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	if c.TrustDomain != "example.org" || c.CertificateTTL != 2*time.Hour || c.PodName != "hauberk-control-1" || c.PodUID != "u" {
		t.Errorf("got %+v", c)
	}
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"a trust domain that is none", []string{"-trust-domain", "spiffe://A b"}, "trust-domain"},
		{"a duration that is none", []string{"-certificate-ttl", "soon"}, "24h"},
		{"a certificate for a second", []string{"-certificate-ttl", "1s"}, "too short"},
		{"an admin page for everybody", []string{"-admin-address", ":15000"}, "loopback"},
		{"an admin page by name", []string{"-admin-address", "localhost:15000"}, "loopback"},
		{"an address without a port", []string{"-grpc-address", "1.2.3.4"}, "host:port"},
		{"a level that is none", []string{"-log-level", "loud"}, "debug, info"},
		{"an argument", []string{"run"}, "flags only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseConfig(tt.args, func(string) string { return "" })
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}
