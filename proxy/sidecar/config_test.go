package sidecar

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
	"github.com/hauberk-mesh/hauberk/proxy/directory"
)

func TestEnvironment(t *testing.T) {
	bundle := string(identitytest.NewAuthority(t, "").RootsPEM())
	good := map[string]string{"HAUBERK_CONTROL_ADDRESS": "10.96.0.5:15012", "HAUBERK_TRUST_BUNDLE": bundle, "HAUBERK_TOKEN_FILE": "/t",
		"HAUBERK_POD_UID": "u", "HAUBERK_POD_IPS": "10.0.0.1,fd00::1", "HAUBERK_DRAIN_SECONDS": "7", "HAUBERK_LOG_LEVEL": "debug",
		"HAUBERK_PROBES": `{"app/liveness":{"grpc":{"port":5},"timeoutSeconds":2}}`}
	c, err := ConfigFromEnvironment(func(k string) string { return good[k] })
	if err != nil {
		t.Fatal(err)
	}
	if len(c.PodIPs) != 2 || c.Drain != 7*time.Second || c.Probes["app/liveness"].GRPC.Port != 5 || c.TrustDomain.Name() != "cluster.local" {
		t.Errorf("got %+v", c)
	}
	for key, bad := range map[string]string{"HAUBERK_CONTROL_ADDRESS": "control:1", "HAUBERK_TRUST_BUNDLE": "x", "HAUBERK_TOKEN_FILE": "",
		"HAUBERK_POD_UID": "", "HAUBERK_POD_IPS": "x", "HAUBERK_DRAIN_SECONDS": "-1", "HAUBERK_LOG_LEVEL": "loud", "HAUBERK_TRUST_DOMAIN": "A B",
		"HAUBERK_PROBES": `{"app/liveness":{"grpc":{"port":5},"tcp":{"port":5}}}`} {
		_, err := ConfigFromEnvironment(func(k string) string {
			if k == key {
				return bad
			}
			return good[k]
		})
		if err == nil || !strings.Contains(err.Error(), key) && !strings.Contains(err.Error(), "probe") {
			t.Errorf("%s=%q: error %v does not name it", key, bad, err)
		}
	}
}

func TestStaticFile(t *testing.T) {
	s, err := ReadStatic("testdata/static.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := directory.New(s.PodUID, slog.New(slog.DiscardHandler))
	f := NewFixed(d, s.resources)
	for _, u := range f.take() {
		if err := d.Apply(u); err != nil {
			t.Fatal(err)
		}
	}
	if self := d.Self(); self == nil || !self.Workload.Strict(8080) || len(self.Set.Ingress) != 1 {
		t.Errorf("self %+v", self)
	}
	if got := s.resources[len(s.resources)-1].GetDestination().GetProtocol(); got != hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1 {
		t.Errorf("protocol %v", got)
	}
	whole, err := os.ReadFile("testdata/static.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"unknown key":      {"drainSeconds:", "drainMinutes:"},
		"unknown field":    {"serviceAccount:", "serviceAcount:"},
		"no own workload":  {"podUID: 1111", "podUID: 3111"},
		"bad destination":  {`destination: "10.96.0.1:80"`, `destination: "server:80"`},
		"unknown protocol": {"APP_PROTOCOL_HTTP1}", "APP_PROTOCOL_HTTP7}"},
	} {
		file := filepath.Join(t.TempDir(), "x.yaml")
		if err := os.WriteFile(file, []byte(strings.Replace(string(whole), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadStatic(file); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
