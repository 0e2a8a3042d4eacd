// Command hauberk-cni is the chained CNI plugin. It asks the node agent over a
// unix socket and holds no state and no credential of its own.
package main

import (
	"context"
	"os"

	"github.com/containernetworking/cni/pkg/skel"

	cniplugin "github.com/hauberk-mesh/hauberk/cni-plugin"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

func main() {
	plugin := cniplugin.New(os.Stdout, os.Stderr)
	skel.PluginMainFuncs(plugin.Funcs(context.Background()), cniplugin.Versions(), "hauberk-cni "+version.String())
}
