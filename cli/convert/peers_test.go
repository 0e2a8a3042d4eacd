package convert

import (
	"strings"
	"testing"
)

// Where Istio takes the older of two objects the files do not say which that is.
func TestPeerAuthenticationsOfOnePod(t *testing.T) {
	const object = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: NAME, namespace: red}
spec: {selector: {matchLabels: {LABEL}}, mtls: {mode: MODE}}
`
	tests := []struct {
		name, labels, modes string
		want                string
	}{
		{"other modes", "app: web|zone: a", "STRICT|PERMISSIVE", "PeerAuthentication red/b: spec.selector: PeerAuthentication red/a may say otherwise of the same pods"},
		{"other pods", "app: web|app: db", "STRICT|PERMISSIVE", ""},
		{"one mode", "app: web|zone: a", "STRICT|STRICT", ""},
	}
	for _, tt := range tests {
		labels, modes := strings.Split(tt.labels, "|"), strings.Split(tt.modes, "|")
		var docs []string
		for i, name := range []string{"a", "b"} {
			docs = append(docs, strings.NewReplacer("NAME", name, "LABEL", labels[i], "MODE", modes[i]).Replace(object))
		}
		_, errors := convertText(strings.Join(docs, "---"), Defaults())
		if got := strings.Join(errors, "\n"); tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
