package main

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/hauberk-mesh/hauberk/tests/yaobank/probe"
)

func TestExitCodes(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"--version", probe.OK, ""},
		{"sleep 1ms", probe.OK, ""},
		{"sleep soon", probe.Usage, "invalid duration"},
		{"probe http GET http://" + address + " --timeout 5s", probe.NoConnect, "connection refused"},
		{"probe tcp " + address, probe.NoConnect, "connection refused"},
		{"probe http GET", probe.Usage, "accepts 2 arg(s)"},
		{"probe tcp --wrong", probe.Usage, "unknown flag"},
		{"customer --summary nonsense", probe.OtherFailed, "wants the form http://name"},
		{"nonsense", probe.OtherFailed, "unknown command"},
	} {
		var out, stderr bytes.Buffer
		cmd := command(&out)
		cmd.SetArgs(strings.Fields(test.args))
		if got := exitCode(cmd.ExecuteContext(t.Context()), &stderr); got != test.code {
			t.Errorf("%q exits %d (%s), want %d", test.args, got, &stderr, test.code)
		}
		if !strings.Contains(stderr.String(), test.says) {
			t.Errorf("%q says %q, want %q in it", test.args, &stderr, test.says)
		}
	}
}

// The manifests must stay true to the binary: each starts a sub-command that exists.
func TestManifestsStartKnownCommands(t *testing.T) {
	text, err := os.ReadFile("manifests/yaobank.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"customer", "summary", "database"} {
		if !strings.Contains(string(text), "args: ["+name+"]") {
			t.Errorf("no Deployment starts %q", name)
		}
		found, _, err := command(&bytes.Buffer{}).Find([]string{name})
		if err != nil || found.Name() != name {
			t.Errorf("the binary has no sub-command %q: %v", name, err)
		}
	}
}
