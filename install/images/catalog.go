package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// binary is a main package and the file it becomes in an image.
type binary struct {
	Name    string
	Package string // relative to Module
	// Module is the folder of another Go module, relative to the checkout; ""
	// is the main module.
	Module string
}

// spec is one image. The zero User would be root, so each names its own.
type spec struct {
	Name        string // repository below the registry's host and path
	Title       string
	Description string
	Binaries    []binary // the first is the entry point
	User        string   // uid:gid
	NetTools    bool     // nft and iptables
}

// registryHost is the first part of the images' names. Nothing is fetched from
// it: the archives carry these names so that manifests can name them.
const registryHost = "hauberk.dev"

const nonroot = "65532:65532"

// component is a binary of the main module under cmd/.
func component(name string) binary { return binary{Name: name, Package: "./cmd/" + name} }

func catalog() []spec {
	proxyUser := strconv.Itoa(names.ProxyUID) + ":" + strconv.Itoa(names.ProxyGID)
	return []spec{
		{
			Name: "hauberk-control", Title: "Hauberk control plane", User: nonroot,
			Description: "Watches Kubernetes, compiles and distributes policy, signs identities.",
			Binaries:    []binary{component("hauberk-control")},
		},
		{
			Name: "hauberk-injector", Title: "Hauberk injector", User: nonroot,
			Description: "The admission webhook that adds the sidecar to pods.",
			Binaries:    []binary{component("hauberk-injector")},
		},
		{
			Name: "hauberk-proxy", Title: "Hauberk sidecar", User: proxyUser,
			Description: "Mutual TLS, policy and telemetry beside each application.",
			Binaries:    []binary{component("hauberk-proxy")},
		},
		{
			Name: "hauberk-node", Title: "Hauberk node agent", User: "0:0", NetTools: true,
			Description: "Redirection, kernel policy and tunnels of a node, with nft and iptables and the CNI plugin.",
			Binaries:    []binary{component("hauberk-node"), component("hauberk-cni")},
		},
		{
			Name: "hauberk-cli", Title: "Hauberk command", User: nonroot,
			Description: "The hauberk command, for use inside a cluster.",
			Binaries:    []binary{component("hauberk")},
		},
		{
			Name: "yaobank", Title: "yaobank", User: nonroot,
			Description: "The demo's three services and its toolbox.",
			Binaries:    []binary{{Name: "yaobank", Package: "./tests/yaobank"}},
		},
		{
			Name: "otel-collector", Title: "OpenTelemetry Collector of Hauberk's tests", User: nonroot,
			Description: "The upstream Collector with an OTLP receiver and a file exporter, for tests.",
			Binaries:    []binary{{Name: "otel-collector", Package: ".", Module: "tests/collector"}},
		},
	}
}

// choose keeps the named images, all if none is named.
func choose(specs []spec, wanted string) ([]spec, error) {
	if wanted == "" {
		return specs, nil
	}
	var chosen []spec
	for name := range strings.SplitSeq(wanted, ",") {
		i := slices.IndexFunc(specs, func(s spec) bool { return s.Name == strings.TrimSpace(name) })
		if i < 0 {
			var known []string
			for _, s := range specs {
				known = append(known, s.Name)
			}
			return nil, fmt.Errorf("there is no image %q; there are %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, specs[i])
	}
	return chosen, nil
}
