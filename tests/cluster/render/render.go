// Package render owns what the cluster's components are told: their command
// lines, their configuration files and the objects which the cluster starts
// with. It turns a plan into text; it writes, starts and reads nothing.
package render

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// Process is one long-running component.
type Process struct {
	Name  string   // unique in the cluster, the name of its log
	Space string   // the namespace it runs in
	Args  []string // the command and its arguments
	// OOMScoreAdj says how readily the kernel may end it when memory is short.
	OOMScoreAdj int
}

// File is a configuration file.
type File struct {
	Path    string
	Content string
}

// Config is everything a plan renders to.
type Config struct {
	ControlPlane []Process
	// Nodes holds each node's containerd, kubelet and kube-proxy, by name.
	Nodes     map[string][]Process
	Files     []File
	NodeList  string // Node objects, made before the kubelets register
	Manifests string // what the cluster starts with: roles and DNS
}

// New renders the plan. bin is the folder of the binaries.
func New(c plan.Cluster, bin string) Config {
	cfg := Config{Nodes: map[string][]Process{}}
	cfg.ControlPlane = controlPlane(c, bin)
	for _, n := range c.Workers() {
		cfg.Nodes[n.Name] = nodeProcesses(c, n, bin)
		cfg.Files = append(cfg.Files, nodeFiles(c, n)...)
	}
	cfg.NodeList = nodeList(c)
	cfg.Manifests = manifests(c)
	return cfg
}

// Fingerprint is the same for two configurations exactly if a cluster started
// from the one is a cluster of the other.
func (c Config) Fingerprint() string {
	text, err := json.Marshal(c)
	if err != nil { // strings, numbers, maps and slices of them always encode
		panic(fmt.Sprintf("encode configuration: %v", err))
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// Kubeconfig renders a kubeconfig which holds its certificates within, so
// that it can be copied anywhere.
func Kubeconfig(server, user string, ca, cert, key []byte) string {
	doc := map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": "hauberk",
		"clusters": []any{map[string]any{"name": "hauberk", "cluster": map[string]any{
			"server": server, "certificate-authority-data": ca}}},
		"users": []any{map[string]any{"name": user, "user": map[string]any{
			"client-certificate-data": cert, "client-key-data": key}}},
		"contexts": []any{map[string]any{"name": "hauberk", "context": map[string]any{
			"cluster": "hauberk", "user": user}}},
	}
	return indented(doc)
}

// KubeconfigPath is where a component finds its kubeconfig.
func KubeconfigPath(space, component string) string {
	return filepath.Join(plan.ConfigDir(space), component+".kubeconfig")
}

func indented(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // only maps, slices, strings, numbers and booleans come here
		panic(fmt.Sprintf("encode: %v", err))
	}
	return string(text) + "\n"
}

func list[T fmt.Stringer](vs []T) string {
	texts := make([]string, len(vs))
	for i, v := range vs {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}

func strs[T fmt.Stringer](vs []T) []any {
	out := make([]any, len(vs))
	for i, v := range vs {
		out[i] = v.String()
	}
	return out
}

func pki(name string) string { return filepath.Join(plan.PKIDir(), name) }

func first(as []netip.Addr) string { return as[0].String() }
