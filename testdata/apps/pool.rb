# Workers that use prometheus-client-mmap, for Ruby.
#
#     pool.rb WORKERS OPERATIONS SEED    each worker changes metrics so often, says "worked PID"
#                                        and waits until standard input is closed
#     pool.rb --collect DIRECTORY        print what the client's own collector makes of it
#
# The directory is that of the variable prometheus_multiproc_dir. Amounts are multiples of 1/8, so
# that sums are exact in whatever order they are added.
require 'prometheus/client'
require 'prometheus/client/formats/text'

if ARGV[0] == '--collect'
  puts Prometheus::Client::Formats::Text.marshal_multiprocess(ARGV[1])
  exit
end

workers, operations, seed = ARGV.map(&:to_i)
registry = Prometheus::Client.registry
STARTS = registry.counter(:pool_starts_total, 'Counted before there are workers, and by each.')
REQUESTS = registry.counter(:pool_requests_total, 'With values of every kind.')
GAUGES = %i[all liveall livesum max min].map { |mode| [mode, registry.gauge(:"pool_level_#{mode}", 'In each mode.', {}, mode)] }
SECONDS = registry.histogram(:pool_seconds, 'With the default buckets.', { queue: 'a "quoted" one' })
EUROS = registry.histogram(:pool_euros, 'With buckets of its own.', {}, [0, 1, 2.5, 1e6])
BYTES = registry.summary(:pool_bytes, 'Sum and count.')
# Not '' beside nil: the collector serves the two as one series twice.
VALUES = [200, nil, true, false, :symbol, 1.5, 'crème brûlée', "two\nlines", 'back\\slash', 'a "quoted" one'].freeze

def work(operations, random)
  STARTS.increment
  operations.times do
    label = VALUES[random.rand(VALUES.size)]
    case random.rand(6)
    when 0 then REQUESTS.increment({ code: label, method: VALUES[random.rand(VALUES.size)] }, random.rand(1..8) / 8.0)
    when 1 then SECONDS.observe({ path: label }, random.rand(100) / 8.0)
    when 2 then EUROS.observe({ kind: 'usual' }, random.rand(40) / 8.0)
    when 3 then EUROS.observe({ kind: label }, random.rand(40) / 8.0)
    when 4 then BYTES.observe({ path: label }, random.rand(4096) / 8.0)
    else
      mode, gauge = GAUGES[random.rand(GAUGES.size)]
      gauge.set({ item: mode == :all ? 1 : label }, random.rand(-100..100) / 8.0)
    end
  end
end

STARTS.increment
pids = Array.new(workers) do |n|
  fork do
    work(operations, Random.new(seed + n))
    $stdout.syswrite("worked #{Process.pid}\n")
    $stdin.read
    exit!
  end
end
pids.each { |pid| Process.wait(pid) }
